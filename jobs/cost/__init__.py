"""Predict the cost of a run before it starts.

``rates`` fits seconds per token, ``calibration`` stores them, ``estimate``
predicts hours and money, ``alternatives`` shows the cost with each setting halved or doubled.
"""
