// Command testbed runs the management cluster of the end-to-end tests on this machine, and packs
// the images that it runs.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"megacluster.io/tests/e2e/testbed/cluster"
	"megacluster.io/tests/e2e/testbed/pack"
)

const usage = `usage: testbed COMMAND --name NAME --state DIRECTORY [...]

  start   --programs DIRECTORY [--timeout D] [--front-door]  bring the cluster up and wait until it is ready
  status                                      show its components
  forward NAME HOST:PORT                      lead a port of 127.0.0.1 into its network; prints it
  stop                                        end it and keep its data
  delete                                      end it and remove everything of it
  pack    --output FILE --image NAME ...      pack an image; see pack --help
`

func init() {
	// The cluster ends with the thread that started it (see cluster.Run): keep the main one.
	runtime.LockOSThread()
}

func main() {
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "testbed:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return errors.New("no command given")
	}
	command, args := args[0], args[1:]
	if command == "pack" {
		return packImage(args)
	}
	var config cluster.Config
	flags := flag.NewFlagSet(command, flag.ContinueOnError)
	flags.StringVar(&config.Name, "name", "megacluster", "name of the cluster")
	flags.StringVar(&config.State, "state", "", "directory of everything the cluster writes")
	flags.StringVar(&config.Programs, "programs", "", "directory of etcd and the Kubernetes programs")
	flags.BoolVar(&config.FrontDoor, "front-door", false, "reach the API server through a front door with a cache")
	timeout := flags.Duration("timeout", 3*time.Minute, "how long to wait for the cluster")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := config.Validate(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	switch command {
	case "start":
		ctx, cancel := context.WithTimeout(ctx, *timeout)
		defer cancel()
		return config.Start(ctx, os.Stdout)
	case "stop":
		return config.Stop()
	case "delete":
		return config.Delete()
	case "status":
		status, err := config.Status()
		if err != nil {
			return err
		}
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(status)
	case "forward":
		if flags.NArg() != 2 {
			return errors.New("usage: testbed forward [flags] NAME HOST:PORT")
		}
		forward, err := config.SetForward(ctx, flags.Arg(0), flags.Arg(1))
		if err != nil {
			return err
		}
		fmt.Println(forward.Listen)
		return nil
	case "run": // by start
		stop()
		return config.Run()
	case "node": // by run
		stop()
		return config.RunNode()
	default:
		fmt.Fprint(os.Stderr, usage)
		return fmt.Errorf("unknown command %q", command)
	}
}

// list collects a flag that may be given more than once.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(value string) error {
	*l = append(*l, value)
	return nil
}

func packImage(args []string) error {
	var image pack.Image
	var labels list
	flags := flag.NewFlagSet("pack", flag.ContinueOnError)
	output := flags.String("output", "", "the docker archive to write")
	flags.StringVar(&image.Name, "image", "", "name and tag of the image")
	flags.StringVar(&image.Program, "program", "", "the one file in it, a static program")
	flags.StringVar(&image.Path, "path", "", "where in the image the program is, and its entry point")
	flags.StringVar(&image.User, "user", "65532:65532", "user and group to run as")
	flags.Var(&labels, "label", "KEY=VALUE, any number of times")
	if err := flags.Parse(args); err != nil {
		return err
	}
	image.Labels = map[string]string{}
	for _, label := range labels {
		key, value, found := strings.Cut(label, "=")
		if !found {
			return fmt.Errorf("label %q: want KEY=VALUE", label)
		}
		image.Labels[key] = value
	}
	return image.Write(*output)
}
