"""What a model is: its metadata read into a specification, its class and tier, its snapshot."""
