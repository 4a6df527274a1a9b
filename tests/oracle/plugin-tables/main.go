// Plugin-tables replays the tests of Kubernetes' own scheduler plugins: it makes their plugins
// record what is asked of them, and cases for the oracle of what was recorded.
package main

import (
	"fmt"
	"os"
	"slices"
)

func run(arguments []string) error {
	switch {
	case len(arguments) == 2 && arguments[0] == "instrument":
		return instrument(arguments[1])
	case len(arguments) == 1 && arguments[0] == "packages":
		var packages []string
		for _, plugin := range plugins {
			if !slices.Contains(packages, plugin.Package) {
				packages = append(packages, plugin.Package)
				fmt.Println(plugin.Package)
			}
		}
		return nil
	case len(arguments) > 1 && arguments[0] == "collect":
		return collectFiles(arguments[1:])
	}
	return fmt.Errorf("usage: plugin-tables instrument COPY | packages | collect FILE…")
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "plugin-tables:", err)
		os.Exit(1)
	}
}
