"""The verbs, in the order in which one media item passes through them.

read_manifest -> probe -> segment -> budget -> plan (jobs/plan), then
decode -> prompt -> engines/ -> parse -> write, chained by build (jobs/annotate).
"""
