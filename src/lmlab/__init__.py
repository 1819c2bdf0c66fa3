"""A laboratory for small language models built from scratch.

Eight rooms, in the order in which text becomes a verdict. A room imports from itself and from the
rooms before it in this list, never from those after it:

    core/         what every stage uses: errors, files, params, the registry of parts, progress
    data/         text to batches: corpora, tokenizers, shards
    model/        what predicts: models and their layers, scoring, generation, the device
    training/     what changes weights: learning rules, interventions, optimizers, schedules, loop
    evaluation/   one run judged and looked into: measures and probes
    explorer/     what looks at a run and reaches into it: a page, served by the model's own code
    export/       what takes a run away: to other tools, or as one plain file of Python
    experiments/  many runs: stages as functions, comparing, searching, studies, the report

cli.py, the command `lmlab`, stands on top of them.
"""
