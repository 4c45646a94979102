"""Pictures, drawn from records with matplotlib."""
