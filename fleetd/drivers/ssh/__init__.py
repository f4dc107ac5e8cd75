"""SSH to hosts: pinned host keys only, and zipapps of ours as the only thing run there."""
