"""The steps of playbooks. A step is one class in one file here; the registry finds it by walking this package."""
