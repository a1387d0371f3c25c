"""The engine on vLLM.

What enters: prepared units. What leaves: answered units. Read ``engine`` first, then ``inputs``
(frames and token ids as vLLM takes them) and ``args`` (how vLLM is started).
"""
