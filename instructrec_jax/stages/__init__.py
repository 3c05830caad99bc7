"""One file a stage; the only place where the pipeline meets the models."""
