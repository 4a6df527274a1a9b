// Package gate lets controllers write only while their process may act.
package gate

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes"
	restclient "k8s.io/client-go/rest"
	"k8s.io/controller-manager/pkg/clientbuilder"
	"k8s.io/klog/v2"

	"megacluster.io/controller-manager/leadership"
)

// ErrNotLeading is what a write gets that may not be sent.
var ErrNotLeading = errors.New("this controller manager does not lead")

// Leadership is what the gate asks of a leadership.Elector.
type Leadership interface {
	MayAct() bool
	State() leadership.State
	Wait(ctx context.Context, until func(leadership.State) bool) bool
}

// Gate lets writes through while this process may act, and no others. A write that comes while the
// right to act is suspended waits: it comes back or is lost within seconds.
type Gate struct {
	leadership Leadership
	mutex      sync.Mutex
	closed     bool
	flying     sync.WaitGroup
}

// New makes an open gate.
func New(leadership Leadership) *Gate { return &Gate{leadership: leadership} }

// enter asks for a write; flying is done when it has ended.
func (g *Gate) enter(ctx context.Context) error {
	for {
		entered, err := g.try()
		if entered || err != nil {
			return err
		}
		decided := func(s leadership.State) bool {
			return !s.Holds || s.Leader && time.Now().Before(s.Fence)
		}
		if !g.leadership.Wait(ctx, decided) {
			return ErrNotLeading
		}
	}
}

// try says whether the write may go; neither that nor an error means that it is to wait.
func (g *Gate) try() (bool, error) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	switch {
	case g.closed:
		return false, ErrNotLeading
	case g.leadership.MayAct():
		g.flying.Add(1)
		return true, nil
	case !g.leadership.State().Holds:
		return false, ErrNotLeading
	}
	return false, nil
}

// Close refuses all writes from now on and waits until those under way have ended, or ctx is done.
func (g *Gate) Close(ctx context.Context) {
	g.mutex.Lock()
	g.closed = true
	g.mutex.Unlock()
	ended := make(chan struct{})
	go func() {
		g.flying.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		klog.InfoS("Writes under way are left to end by themselves")
	}
}

type transport struct {
	gate *Gate
	next http.RoundTripper
}

func (t transport) RoundTrip(request *http.Request) (*http.Response, error) {
	switch request.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return t.next.RoundTrip(request)
	}
	if err := t.gate.enter(request.Context()); err != nil {
		if request.Body != nil {
			request.Body.Close()
		}
		return nil, err
	}
	defer t.gate.flying.Done()
	return t.next.RoundTrip(request)
}

// Builder builds clients whose writes pass the gate.
type Builder struct {
	inner clientbuilder.ControllerClientBuilder
	gate  *Gate
}

var _ clientbuilder.ControllerClientBuilder = Builder{}

// Clients gives the clients of inner, whose writes pass the gate.
func (g *Gate) Clients(inner clientbuilder.ControllerClientBuilder) Builder { return Builder{inner, g} }

// Config is the configuration of a client.
func (b Builder) Config(name string) (*restclient.Config, error) {
	config, err := b.inner.Config(name)
	if err != nil {
		return nil, err
	}
	config = restclient.CopyConfig(config)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return transport{b.gate, next} })
	return config, nil
}

// Client is a client of all of the API.
func (b Builder) Client(name string) (kubernetes.Interface, error) {
	config, err := b.Config(name)
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(config)
}

// DiscoveryClient only reads.
func (b Builder) DiscoveryClient(name string) (discovery.DiscoveryInterface, error) {
	return b.inner.DiscoveryClient(name)
}

// ConfigOrDie is Config; an error ends the process.
func (b Builder) ConfigOrDie(name string) *restclient.Config {
	return orDie(b.Config(name))
}

// ClientOrDie is Client; an error ends the process.
func (b Builder) ClientOrDie(name string) kubernetes.Interface {
	return orDie(b.Client(name))
}

// DiscoveryClientOrDie is DiscoveryClient; an error ends the process.
func (b Builder) DiscoveryClientOrDie(name string) discovery.DiscoveryInterface {
	return orDie(b.DiscoveryClient(name))
}

func orDie[T any](value T, err error) T {
	if err != nil {
		klog.Fatal(err)
	}
	return value
}
