"""What a person looks at when a slide is finished."""
