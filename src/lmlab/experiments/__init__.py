"""Many runs: stages as functions, comparing, searching, studies, the report."""
