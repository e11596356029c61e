// Validates Grafana dashboards: each file named by an argument is decoded strictly, and checked against the
// constraints of its fields.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

func validate(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var decoded dashboard.Dashboard
	if err := found(decoded.UnmarshalJSONStrict(text)); err != nil {
		return err
	}
	return found(decoded.Validate())
}

// The decoder returns an empty list of errors where it found none.
func found(err error) error {
	var list cog.BuildErrors
	if errors.As(err, &list) && len(list) == 0 {
		return nil
	}
	return err
}

func main() {
	// Without them, the options and the queries of panels are not decoded.
	plugins.RegisterDefaultPlugins()
	failed := len(os.Args) < 2
	if failed {
		fmt.Fprintln(os.Stderr, "usage: validate-dashboards FILE...")
	}
	for _, path := range os.Args[1:] {
		if err := validate(path); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", path, err)
			failed = true
			continue
		}
		fmt.Printf("%s: valid\n", path)
	}
	if failed {
		os.Exit(1)
	}
}
