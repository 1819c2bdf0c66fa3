"""Pictures drawn from the code: the pipeline, a model, the signals of a learning rule."""
