"""What changes weights: learning rules, interventions, optimizers, schedules, and the loop around a
step.
"""
