"""What looks on while a run is trained."""
