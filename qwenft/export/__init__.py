"""What a run becomes where other tools take over: merged weights or an adapter, checked before it stands."""
