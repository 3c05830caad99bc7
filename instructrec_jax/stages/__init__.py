"""A file or a folder for each verb; the only place where the pipeline meets the models."""
