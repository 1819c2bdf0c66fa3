"""What changes weights: learning rules, interventions, optimizers, schedules, loop."""
