"""What a synthetic set is judged by. Each metric comes with its real-against-real floor."""
