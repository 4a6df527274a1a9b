package main

import (
	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"

	"megacluster.io/controller-manager/leadership"
)

var (
	takeoverSeconds = metrics.NewHistogramVec(&metrics.HistogramOpts{
		Namespace:      "megacluster",
		Subsystem:      "leadership",
		Name:           "takeover_seconds",
		Help:           "From the last sign of the old leader until this process might act",
		Buckets:        metrics.ExponentialBuckets(0.005, 2, 13),
		StabilityLevel: metrics.ALPHA,
	}, []string{"component", "cause"})
	takeovers = metrics.NewCounterVec(&metrics.CounterOpts{
		Namespace:      "megacluster",
		Subsystem:      "leadership",
		Name:           "takeovers_total",
		Help:           "Leaderships begun by this process",
		StabilityLevel: metrics.ALPHA,
	}, []string{"component", "cause"})
)

func registerMetrics() {
	legacyregistry.MustRegister(takeoverSeconds, takeovers)
}

func observeTakeover(takeover leadership.Takeover) {
	takeovers.WithLabelValues("controller-manager", string(takeover.Cause)).Inc()
	if takeover.Took > 0 {
		takeoverSeconds.WithLabelValues("controller-manager", string(takeover.Cause)).Observe(takeover.Took.Seconds())
	}
}
