"""What a session wants: its control key, its lease and its streamed text, watched for changes."""
