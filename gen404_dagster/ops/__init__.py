"""An operator's interventions: what people had to do by hand while rounds ran, as commands with a validation.

Belongs here: one module an action, and their command line (`command`). Does not: what the pipeline does by itself.
"""
