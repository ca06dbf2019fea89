"""An interactive video world model: from one picture and one sentence to a place that a person walks through."""
