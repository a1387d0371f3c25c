"""The simulated engine: no model, plausible answers, the time that a model would take.

What enters: prepared units. What leaves: answered units. ``Task.simulate`` writes the answers.
"""
