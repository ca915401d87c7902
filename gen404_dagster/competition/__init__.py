"""The rules of the competition: pure functions and models. No Dagster, no I/O, no clock, no globals.

Everything a rule needs is an argument; everything it decides is its return value. Whoever wants to know why a round
ended as it did reads this folder and the state repository, and nothing else.
"""
