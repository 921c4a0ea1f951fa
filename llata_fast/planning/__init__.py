"""What a training will need, before anything is rented: FLOPs, memory, bytes on the wire, time."""
