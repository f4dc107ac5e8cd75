"""For all tests: quiet logs, hypothesis without a database or a clock of its own, and no event loop before the first test."""

import asyncio

from hypothesis import HealthCheck, settings

from fleetd.kit import logs

logs.set_up("text", "error")
settings.register_profile("house", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")
# pytest-asyncio asks for the current loop first and would leak the one that the policy makes for it: a warning is an error.
asyncio.set_event_loop(None)
