"""``reelscribe demo``: render a small archive and annotate it.

``scene`` draws scenes and has their gold, ``random_scene`` and ``random_text`` make random ones,
``encode`` writes clips, ``archive`` renders all files, ``demo`` runs the job.
"""
