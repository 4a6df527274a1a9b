package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"k8s.io/apiserver/pkg/server"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	restclient "k8s.io/client-go/rest"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/component-base/cli/globalflag"
	basecompatibility "k8s.io/component-base/compatibility"
	"k8s.io/component-base/featuregate"
	"k8s.io/component-base/logs"
	logsapi "k8s.io/component-base/logs/api/v1"
	"k8s.io/component-base/version/verflag"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
)

// name is the stock program's: its user agent, metrics and configuration are ours too.
const name = "kube-controller-manager"

// standbyFlags are the flags that the stock program doesn't have.
type standbyFlags struct {
	listen string
}

// newCommand is app.NewControllerManagerCommand with another way to run
// (k8s.io/kubernetes/cmd/kube-controller-manager/app/controllermanager.go).
func newCommand() *cobra.Command {
	s, err := options.NewKubeControllerManagerOptions()
	flags := standbyFlags{}
	cmd := &cobra.Command{
		Use:          "megacluster-controller-manager",
		Long:         "The Kubernetes controller manager with a warm standby.",
		SilenceUsage: true,
		Args:         cobra.NoArgs,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if err != nil {
				return fmt.Errorf("options: %w", err)
			}
			restclient.SetDefaultWarningHandler(restclient.NoWarnings{})
			return s.ComponentGlobalsRegistry.Set()
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			verflag.PrintAndExitIfRequested()
			if err := logsapi.ValidateAndApply(s.Logs, utilfeature.DefaultFeatureGate); err != nil {
				return err
			}
			cliflag.PrintFlags(cmd.Flags())
			ctx := server.SetupSignalContext()
			// Not the signal's: event broadcasters and clients are needed until the Lease is given back.
			c, err := s.Config(cmd.Context(), app.KnownControllers(), app.ControllersDisabledByDefault(), app.ControllerAliases())
			if err != nil {
				return err
			}
			gates := s.ComponentGlobalsRegistry.FeatureGateFor(basecompatibility.DefaultKubeComponent)
			if gates, ok := gates.(featuregate.MutableFeatureGate); ok {
				gates.AddMetrics()
			}
			s.ComponentGlobalsRegistry.AddMetrics()
			return run(ctx, c.Complete(), flags)
		},
	}
	if err != nil {
		return cmd
	}
	sets := s.Flags(app.KnownControllers(), app.ControllersDisabledByDefault(), app.ControllerAliases())
	s.ParsedFlags = &sets
	own := sets.FlagSet("standby")
	own.StringVar(&flags.listen, "standby-listen-address", "0.0.0.0:0", "Where standbys connect to the leader; port 0 for any.")
	verflag.AddFlags(sets.FlagSet("global"))
	globalflag.AddGlobalFlags(sets.FlagSet("global"), cmd.Name(), logs.SkipLoggingConfigurationFlags())
	for _, set := range sets.FlagSets {
		cmd.Flags().AddFlagSet(set)
	}
	cliflag.SetUsageAndHelpFunc(cmd, sets, 0)
	return cmd
}
