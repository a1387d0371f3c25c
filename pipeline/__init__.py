"""The core: the steps that annotate media items, and training with the same parts.

``manifest`` lists media items, ``storage`` and ``media`` read them, ``tasks`` and ``model`` build
prompts, ``plan`` counts tokens, ``engines`` generate answers, ``output`` writes rows. ``stages``
chains these steps on Ray, ``workers`` protects its processes, ``training`` trains a model.
"""

import _reelscribe as _reelscribe
