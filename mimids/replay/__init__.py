"""What `mimids mls` needs: recordings, replay and inspection."""
