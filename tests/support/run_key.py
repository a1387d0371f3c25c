"""The key of a run, with recipe ids of the test's own."""

from pipeline.output.rows import RunKey
from schemas.tables.annotation import RecipeIds


def run_key(run_id: str, recipe_id: str = "r1", run_date: str = "2026-11-22") -> RunKey:
    """A run's key. recipe_id: of all rows, or of images and of all others: ``i1+v1``."""
    image, _, other = recipe_id.partition("+")
    other = other or image
    recipes = RecipeIds(image=image, video=other, messages=other, unread=other)
    return RunKey(run_id=run_id, recipe_ids=recipes, run_date=run_date)
