"""Raw logs -> artefact A: catalogue, histories, splits and candidates."""
