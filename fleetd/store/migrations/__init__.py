"""Alembic's folder: env.py says how, versions/ says what. Packages, so that an installed fleetd carries them."""
