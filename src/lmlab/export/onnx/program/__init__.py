"""What an export's own programs are made of; none of it needs the lab."""
