"""What the commands do; imported when one runs, because it imports torch."""
