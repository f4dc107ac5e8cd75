"""The report probe: reads NVML, sysfs, /proc, the kernel log and NVMe, and prints one JSON report of raw facts.

It never judges. What it could not read is stated as ``{"absent": reason}``. The shape is that of
`fleetd.model.report.Report`.
"""

VERSION = "1"
FORMAT = "fleetd.report/1"
