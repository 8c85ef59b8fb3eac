"""What a trial keeps besides numbers: images, sounds, videos, distributions, tables."""
