"""How the demo's model was made: data sets, a tiny checkpoint, seven trainings."""
