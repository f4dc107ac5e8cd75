"""The tool room: errors, time, tasks, retries, configuration, logs. Imports nothing else of fleetd."""
