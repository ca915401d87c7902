"""The 404-GEN competition (Bittensor subnet 17) as a Dagster data-asset pipeline.

The way of the data, and what each room holds: README.md and docs/. Rules live in `competition/` (pure), the outside
world in `resources/`, the pipeline in `assets/`, `sensors/` and `definitions.py`.
"""
