package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"megacluster.io/tests/oracle/plugin-tables/recorder"
)

// Entry is one line of what is collected: a case for the oracle, and what the plugin said in its test.
type Entry struct {
	Plugin string `json:"plugin"`
	// Test and the entry of its table.
	Test     string    `json:"test"`
	Case     *Case     `json:"case,omitempty"`
	Expected *Expected `json:"expected,omitempty"`
	// Gates of the plugin that are on.
	Gates []string `json:"gates,omitempty"`
}

// Expected is what the plugin said.
type Expected struct {
	PreFilter *recorder.Status           `json:"preFilter,omitempty"`
	Filter    map[string]recorder.Status `json:"filter,omitempty"`
	Scores    map[string]int64           `json:"scores,omitempty"`
	// Victims on each node that was tried for preemption.
	Victims map[string]*Victims `json:"victims,omitempty"`
}

// Victims on one node; null where evictions don't help.
type Victims struct {
	Pods       []string `json:"pods"`
	Violations int      `json:"violations"`
}

var started = regexp.MustCompile(`^=== (?:RUN|CONT|NAME) +(Test\S*)`)

// collect reads what the tests of one package printed, and writes an entry for each time that one
// asked a plugin about a pod, and one for each test that asked none.
func collect(name string, in io.Reader, out io.Writer) error {
	encoder := json.NewEncoder(out)
	var tests []string
	asked := map[string]bool{}
	var events []recorder.Event
	test := ""
	flush := func() error {
		for _, call := range calls(events) {
			entry := call.entry()
			entry.Test = test
			asked[test] = true
			if err := encoder.Encode(entry); err != nil {
				return err
			}
		}
		events = nil
		return nil
	}
	lines := bufio.NewReaderSize(in, 1<<20)
	for {
		line, err := lines.ReadBytes('\n')
		if found := started.FindSubmatch(line); found != nil && string(found[1]) != test {
			if err := flush(); err != nil {
				return err
			}
			test = string(found[1])
			tests = append(tests, test)
		} else if text, ok := bytes.CutPrefix(line, []byte(recorder.Mark)); ok {
			var event recorder.Event
			if err := json.Unmarshal(text, &event); err != nil {
				return fmt.Errorf("%s: %w", test, err)
			}
			// Tests of preemption have other plugins beside it.
			if name == "defaultpreemption" && event.Plugin != "DefaultPreemption" {
				continue
			}
			events = append(events, event)
		}
		if err == io.EOF {
			break
		} else if err != nil {
			return err
		}
	}
	if err := flush(); err != nil {
		return err
	}
	for i, test := range tests {
		parent := i+1 < len(tests) && strings.HasPrefix(tests[i+1], test+"/")
		if !asked[test] && !parent {
			if err := encoder.Encode(Entry{Plugin: name, Test: test}); err != nil {
				return err
			}
		}
	}
	return nil
}

// calls divides events into those that belong to one try of a pod.
func calls(events []recorder.Event) []*call {
	var all []*call
	for _, event := range events {
		var last *call
		for _, one := range all {
			if one.events[0].Plugin == event.Plugin && one.events[0].Instance == event.Instance {
				last = one
			}
		}
		if last == nil || !last.continues(&event) {
			last = &call{}
			all = append(all, last)
		}
		last.events = append(last.events, event)
	}
	return all
}

type call struct{ events []recorder.Event }

var order = map[string]int{"PreFilter": 0, "Filter": 1, "PreScore": 2, "Score": 3, "NormalizeScore": 4, "SelectVictims": 5}

// continues says whether an event is a later step, or the same one about another node.
func (c *call) continues(event *recorder.Event) bool {
	first, last := &c.events[0], &c.events[len(c.events)-1]
	if !reflect.DeepEqual(first.Pod, event.Pod) || order[event.Step] < order[last.Step] {
		return false
	}
	if event.Step != last.Step {
		return true
	}
	if event.Node == nil {
		return false
	}
	return !slices.ContainsFunc(c.events, func(other recorder.Event) bool {
		return other.Step == event.Step && called(&other) == called(event)
	})
}

func (c *call) entry() Entry {
	last := c.events[len(c.events)-1]
	entry := Entry{Plugin: last.Plugin, Expected: &Expected{}}
	for gate, on := range last.Gates {
		if on {
			entry.Gates = append(entry.Gates, gate)
		}
	}
	slices.Sort(entry.Gates)
	builder := newBuilder(&last)
	raw := map[string]int64{}
	skipped := false
	for _, event := range c.events {
		builder.add(&event)
		switch event.Step {
		case "PreFilter":
			entry.Expected.PreFilter = &event.Status
		case "Filter":
			if entry.Expected.Filter == nil {
				entry.Expected.Filter = map[string]recorder.Status{}
			}
			entry.Expected.Filter[called(&event)] = event.Status
		case "PreScore":
			skipped = event.Status.Code == "Skip"
		case "Score":
			raw[called(&event)] = event.Score
			if !normalizes(event.Plugin) && !skipped {
				entry.Expected.Scores = raw
			}
		case "SelectVictims":
			if entry.Expected.Victims == nil {
				entry.Expected.Victims = map[string]*Victims{}
			}
			node := called(&event)
			entry.Expected.Victims[node] = nil
			if event.Status.Code == "Success" {
				entry.Expected.Victims[node] = builder.victims(node, &event)
			}
		case "NormalizeScore":
			if !skipped && len(event.Scores) > 0 {
				entry.Expected.Scores = event.Scores
			}
		}
	}
	entry.Case = builder.build(c)
	return entry
}

// normalizes says whether a plugin's scores are only final after NormalizeScore.
func normalizes(plugin string) bool {
	return slices.Contains([]string{
		"TaintToleration", "NodeAffinity", "PodTopologySpread", "InterPodAffinity",
	}, plugin)
}

func collectFiles(files []string) error {
	out := bufio.NewWriter(os.Stdout)
	for _, path := range files {
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		name := strings.TrimSuffix(path[strings.LastIndex(path, "/")+1:], ".log")
		err = collect(name, file, out)
		file.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return out.Flush()
}
