"""What flows backward at a cut: learning rules that replace it put it in here."""
