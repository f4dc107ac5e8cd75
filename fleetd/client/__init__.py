"""The typed way to the API for programs in Python: the technician's hand uses nothing else."""
