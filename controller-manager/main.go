// megacluster-controller-manager is the stock kube-controller-manager with a warm standby: it builds
// its controllers and fills their caches before it leads, and takes over within a second of a
// leader's death. Flags, controllers and metrics are those of the pinned Kubernetes version.
package main

import (
	"os"
	_ "time/tzdata" // time zones of CronJobs

	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
)

func main() {
	os.Exit(cli.Run(newCommand()))
}
