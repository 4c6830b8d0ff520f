"""The roles as processes: the parent that starts them and starts again what died, its channel to each, their rights."""
