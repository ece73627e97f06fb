package main

import "context"

// afterwards is done once a command has ended: nothing yet.
func (a *app) afterwards(context.Context) {}
