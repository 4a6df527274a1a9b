package main

import (
	"context"
	"fmt"
	"os"

	certutil "k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
	"k8s.io/controller-manager/pkg/clientbuilder"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
	serviceaccountcontroller "k8s.io/kubernetes/pkg/controller/serviceaccount"
	"k8s.io/kubernetes/pkg/serviceaccount"
)

// tokens is the controller that app keeps to itself: it needs the full rights of this process
// (k8s.io/kubernetes/cmd/kube-controller-manager/app/service_accounts.go).
type tokens struct {
	controller *serviceaccountcontroller.TokensController
	workers    int
}

func (tokens) Name() string { return names.ServiceAccountTokenController }

func (t tokens) Run(ctx context.Context) { t.controller.Run(ctx, t.workers) }

// newTokens builds the controller; nil where there is no key to sign with.
func newTokens(ctx context.Context, controllers app.ControllerContext, clients clientbuilder.ControllerClientBuilder) (app.Controller, error) {
	settings := controllers.ComponentConfig.SAController
	if settings.ServiceAccountKeyFile == "" {
		klog.InfoS("Controller is disabled because there is no private key", "controller", names.ServiceAccountTokenController)
		return nil, nil
	}
	key, err := keyutil.PrivateKeyFromFile(settings.ServiceAccountKeyFile)
	if err != nil {
		return nil, fmt.Errorf("the service accounts' key: %w", err)
	}
	config, err := clients.Config("tokens-controller")
	if err != nil {
		return nil, err
	}
	root := config.CAData
	if settings.RootCAFile != "" {
		if root, err = os.ReadFile(settings.RootCAFile); err != nil {
			return nil, err
		}
		if _, err := certutil.ParseCertsPEM(root); err != nil {
			return nil, fmt.Errorf("%s: %w", settings.RootCAFile, err)
		}
	}
	client, err := clients.Client("tokens-controller")
	if err != nil {
		return nil, err
	}
	generator, err := serviceaccount.JWTTokenGenerator(serviceaccount.LegacyIssuer, key)
	if err != nil {
		return nil, fmt.Errorf("token generator: %w", err)
	}
	controller, err := serviceaccountcontroller.NewTokensController(
		klog.FromContext(ctx),
		controllers.InformerFactory.Core().V1().ServiceAccounts(),
		controllers.InformerFactory.Core().V1().Secrets(),
		client,
		serviceaccountcontroller.TokensControllerOptions{TokenGenerator: generator, RootCA: root},
	)
	if err != nil {
		return nil, fmt.Errorf("tokens controller: %w", err)
	}
	return tokens{controller, int(settings.ConcurrentSATokenSyncs)}, nil
}
