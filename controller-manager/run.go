package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apiserver/pkg/server/healthz"
	"k8s.io/apiserver/pkg/server/mux"
	"k8s.io/client-go/kubernetes"
	v1core "k8s.io/client-go/kubernetes/typed/core/v1"
	restclient "k8s.io/client-go/rest"
	"k8s.io/component-base/configz"
	"k8s.io/component-base/metrics/prometheus/slis"
	utilversion "k8s.io/component-base/version"
	genericcontrollermanager "k8s.io/controller-manager/app"
	"k8s.io/controller-manager/pkg/clientbuilder"
	controllerhealthz "k8s.io/controller-manager/pkg/healthz"
	"k8s.io/controller-manager/pkg/leadermigration"
	"k8s.io/klog/v2"
	configv1alpha1 "k8s.io/kube-controller-manager/config/v1alpha1"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app/config"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
	configv1alpha1conversion "k8s.io/kubernetes/pkg/controller/apis/config/v1alpha1"

	"megacluster.io/controller-manager/gate"
	"megacluster.io/controller-manager/leadership"
)

const (
	// A process whose caches are not full after this long takes part in the election without: where
	// nobody else is there, it leads as the stock one does.
	joinWithin = time.Minute
	// Writes under way when the process shall stop have this long to end.
	drainTime = 5 * time.Second
	// The election's last words.
	releaseTime = 5 * time.Second
	// Leadership that was suspended for this long makes the process unhealthy, as in the stock one.
	suspendedTime = 20 * time.Second
)

// run is app.Run in another order: everything is built, started and filled before this process
// leads; leading starts the controllers' workers.
func run(ctx context.Context, c *config.CompletedConfig, flags standbyFlags) error {
	klog.InfoS("Starting", "version", utilversion.Get())
	if leadermigration.Enabled(&c.ComponentConfig.Generic) {
		return errors.New("--enable-leader-migration: not with a hot standby")
	}
	c.EventBroadcaster.StartStructuredLogging(0)
	c.EventBroadcaster.StartRecordingToSink(&v1core.EventSinkImpl{Interface: c.Client.CoreV1().Events("")})
	defer c.EventBroadcaster.Shutdown()
	if err := showConfig(c); err != nil {
		return err
	}
	// A life of its own: what runs is not cut off before the Lease is given back.
	life, end := context.WithCancel(context.Background())
	defer end()
	elector, err := newElector(c, flags)
	if err != nil {
		return err
	}
	checks := controllerhealthz.NewMutableHealthzHandler(healthz.NamedCheck("leaderElection", suspended(elector)))
	handlers, err := serve(life, c, checks, elector)
	if err != nil {
		return err
	}
	writes := gate.New(elector)
	built, warm, err := build(life, c, writes, handlers, checks)
	if err != nil {
		return err
	}
	standby, leads := context.WithCancel(life)
	defer leads()
	filled := make(chan struct{})
	go func() {
		warm.fill(life)
		elector.SetSynced(true)
		close(filled)
		warm.keep(standby, life)
	}()
	select {
	case <-filled:
	case <-ctx.Done():
		return nil
	case <-time.After(joinWithin):
		klog.InfoS("The caches are not full yet: takes part all the same", "after", joinWithin)
	}
	if c.ComponentConfig.Generic.LeaderElection.LeaderElect {
		electing, stopElecting := context.WithCancel(context.Background())
		released := make(chan struct{})
		go func() {
			elector.Run(electing)
			close(released)
		}()
		defer func() {
			stopElecting()
			select {
			case <-released:
			case <-time.After(releaseTime):
			}
		}()
	} else {
		elector.LeadAlone()
	}
	// Not only when we may act: what controllers look through first they do while the right to act is
	// still to come, as after a deletion of the Lease, and the gate holds their writes until then.
	led := elector.Wait(ctx, func(s leadership.State) bool { return s.Holds })
	leads()
	if !led {
		return nil
	}
	klog.InfoS("Leading", "epoch", elector.State().Epoch, "controllers", len(built.controllers))
	go app.RunControllers(life, built.context, inOrder(built.controllers), app.ControllerStartJitter, c.ControllerShutdownTimeout)
	lost := elector.Wait(ctx, func(s leadership.State) bool { return !s.Holds })
	if lost {
		// As the stock one does: what this process believes is of the past.
		klog.ErrorS(nil, "Leadership lost")
		klog.FlushAndExit(klog.ExitFlushTimeout, 1)
	}
	drained, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	writes.Close(drained)
	return nil
}

func showConfig(c *config.CompletedConfig) error {
	external := &configv1alpha1.KubeControllerManagerConfiguration{}
	err := configv1alpha1conversion.Convert_config_KubeControllerManagerConfiguration_To_v1alpha1_KubeControllerManagerConfiguration(&c.ComponentConfig, external, nil)
	if err != nil {
		return fmt.Errorf("configz: %w", err)
	}
	external.SetGroupVersionKind(configv1alpha1.SchemeGroupVersion.WithKind("KubeControllerManagerConfiguration"))
	shown, err := configz.New(app.ConfigzName)
	if err != nil {
		return fmt.Errorf("configz: %w", err)
	}
	return shown.Set(external)
}

func newElector(c *config.CompletedConfig, flags standbyFlags) (*leadership.Elector, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	registerMetrics()
	settings := c.ComponentConfig.Generic.LeaderElection
	leaseConfig := restclient.AddUserAgent(restclient.CopyConfig(c.Kubeconfig), "leader-election")
	// The election never waits for the controllers' rate limit.
	leaseConfig.QPS = -1
	client, err := kubernetes.NewForConfig(leaseConfig)
	if err != nil {
		return nil, err
	}
	return leadership.New(client.CoordinationV1(), leadership.Config{
		Namespace:     settings.ResourceNamespace,
		Name:          settings.ResourceName,
		Identity:      host + "_" + life(flags.listen),
		LeaseDuration: electionTime(settings.LeaseDuration, 15*time.Second, 5*time.Second),
		RenewDeadline: electionTime(settings.RenewDeadline, 10*time.Second, 3*time.Second),
		RetryPeriod:   electionTime(settings.RetryPeriod, 2*time.Second, time.Second),
		Listen:        flags.listen,
		Server:        c.Kubeconfig.Host,
		OnTakeover:    observeTakeover,
	})
}

// life is the same for each life of a process that has a port of its own, by which it knows that
// the one before is over; without one each life has a name of its own.
func life(listen string) string {
	if _, port, err := net.SplitHostPort(listen); err == nil && port != "0" {
		return port
	}
	return string(uuid.NewUUID())
}

// electionTime is what a flag says, and the protocol's own figure where it says the stock default.
func electionTime(set metav1.Duration, stock, own time.Duration) time.Duration {
	if set.Duration == stock {
		return own
	}
	return set.Duration
}

// serve starts the port with health, metrics and profiles. Beside the stock paths, /readyz is well
// where this process leads or could take over warm.
func serve(ctx context.Context, c *config.CompletedConfig, checks *controllerhealthz.MutableHealthzHandler, elector *leadership.Elector) (*mux.PathRecorderMux, error) {
	if c.SecureServing == nil {
		return nil, nil
	}
	handlers := genericcontrollermanager.NewBaseHandler(&c.ComponentConfig.Generic.Debugging, checks)
	slis.SLIMetricsWithReset{}.Install(handlers)
	handlers.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		switch {
		case elector.MayAct():
			_, _ = w.Write([]byte("leading"))
		case elector.Synced():
			_, _ = w.Write([]byte("warm"))
		default:
			http.Error(w, "the caches are not full yet", http.StatusServiceUnavailable)
		}
	})
	chain := genericcontrollermanager.BuildHandlerChain(handlers, &c.Authorization, &c.Authentication)
	_, _, err := c.SecureServing.Serve(chain, 0, ctx.Done())
	return handlers, err
}

type built struct {
	context     app.ControllerContext
	controllers []app.Controller
}

// build makes the controllers and starts their informers.
func build(ctx context.Context, c *config.CompletedConfig, writes *gate.Gate, handlers *mux.PathRecorderMux, checks *controllerhealthz.MutableHealthzHandler) (built, *warmth, error) {
	root := clientbuilder.SimpleControllerClientBuilder{ClientConfig: c.Kubeconfig}
	var clients clientbuilder.ControllerClientBuilder = root
	if c.ComponentConfig.KubeCloudShared.UseServiceAccountCredentials {
		// A standby asks for its controllers' tokens too.
		clients = clientbuilder.NewDynamicClientBuilder(
			restclient.AnonymousClientConfig(c.Kubeconfig), c.Client.CoreV1(), metav1.NamespaceSystem)
	}
	gatedRoot := writes.Clients(root)
	controllers, err := app.CreateControllerContext(ctx, c, gatedRoot, writes.Clients(clients))
	if err != nil {
		return built{}, nil, fmt.Errorf("controller context: %w", err)
	}
	descriptors := app.NewControllerDescriptors()
	delete(descriptors, names.ServiceAccountTokenController)
	all, err := app.BuildControllers(ctx, controllers, descriptors, handlers, checks)
	if err != nil {
		return built{}, nil, fmt.Errorf("controllers: %w", err)
	}
	tokens, err := newTokens(ctx, controllers, gatedRoot)
	if err != nil {
		return built{}, nil, err
	}
	if tokens != nil {
		checks.AddHealthChecker(controllerhealthz.NamedPingChecker(tokens.Name()))
		all = append([]app.Controller{tokens}, all...)
	}
	controllers.InformerFactory.Start(ctx.Done())
	controllers.ObjectOrMetadataInformerFactory.Start(ctx.Done())
	close(controllers.InformersStarted)
	client, err := root.DiscoveryClient("controller-discovery")
	if err != nil {
		return built{}, nil, err
	}
	return built{controllers, all}, newWarmth(controllers, client), nil
}

func suspended(elector *leadership.Elector) func(*http.Request) error {
	return func(*http.Request) error {
		if s := elector.State(); s.Holds && !s.Leader && time.Since(elector.Renewed()) > suspendedTime {
			return errors.New("the Lease could not be renewed")
		}
		return nil
	}
}
