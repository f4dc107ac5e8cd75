"""Pure judgement: (subject, facts, profile, context) -> verdict. The rooms above need only what stands here.

A check never reads a wire, a file or a clock; all that it may know comes in its arguments, so that the same report
always gives the same verdict and a certificate can be argued about years later.
"""

from fleetd.checks.context import Context, Expected, Past
from fleetd.checks.registry import every, headline, misfit, run_domain, run_suite

__all__ = ["Context", "Expected", "Past", "every", "headline", "misfit", "run_domain", "run_suite"]
