/** @file
  The boot: verify, describe the machine, start the kernel. Every other path halts.

  Stands in the place of a boot manager (BDS): there is no boot order, no variable, no device to boot from.

  SPDX-License-Identifier: BSD-2-Clause-Patent
**/

#include <Guid/LinuxEfiInitrdMedia.h>
#include <Library/BaseLib.h>
#include <Library/BaseMemoryLib.h>
#include <Library/CpuLib.h>
#include <Library/UefiBootServicesTableLib.h>
#include <Protocol/Bds.h>
#include <Protocol/DevicePath.h>
#include <Protocol/LoadFile2.h>
#include <Protocol/LoadedImage.h>
#include <Protocol/SimpleTextOut.h>
#include "Boot.h"

STATIC PARTS  mParts;

VOID
Halt (
  VOID
  )
{
  for ( ; ; ) {
    DisableInterrupts ();
    CpuSleep ();
  }
}

VOID
Require (
  IN BOOLEAN  Condition
  )
{
  if (!Condition) {
    Halt ();
  }
}

/// Gives the kernel its initrd. Source: linux, Documentation/admin-guide/efi-stub.rst, LINUX_EFI_INITRD_MEDIA_GUID.
STATIC
EFI_STATUS
EFIAPI
LoadInitrd (
  IN     EFI_LOAD_FILE2_PROTOCOL   *This,
  IN     EFI_DEVICE_PATH_PROTOCOL  *FilePath,
  IN     BOOLEAN                   BootPolicy,
  IN OUT UINTN                     *BufferSize,
  OUT    VOID                      *Buffer OPTIONAL
  )
{
  if (BootPolicy) {
    return EFI_UNSUPPORTED;
  }

  if (BufferSize == NULL) {
    return EFI_INVALID_PARAMETER;
  }

  if ((Buffer == NULL) || (*BufferSize < mParts.Initrd.Size)) {
    *BufferSize = mParts.Initrd.Size;
    return EFI_BUFFER_TOO_SMALL;
  }

  *BufferSize = mParts.Initrd.Size;
  CopyMem (Buffer, mParts.Initrd.Data, mParts.Initrd.Size);
  return EFI_SUCCESS;
}

STATIC EFI_LOAD_FILE2_PROTOCOL  mLoadInitrd = { LoadInitrd };

#pragma pack (1)
STATIC CONST struct {
  VENDOR_DEVICE_PATH          Vendor;
  EFI_DEVICE_PATH_PROTOCOL    End;
} mInitrdPath = {
  {
    { MEDIA_DEVICE_PATH, MEDIA_VENDOR_DP, { sizeof (VENDOR_DEVICE_PATH), 0 } },
    LINUX_EFI_INITRD_MEDIA_GUID
  },
  { END_DEVICE_PATH_TYPE, END_ENTIRE_DEVICE_PATH_SUBTYPE, { sizeof (EFI_DEVICE_PATH_PROTOCOL), 0 } }
};
#pragma pack ()

/// A console that shows nothing.
STATIC EFI_SIMPLE_TEXT_OUTPUT_MODE  mMode;

STATIC
EFI_STATUS
EFIAPI
Discard (
  IN EFI_SIMPLE_TEXT_OUTPUT_PROTOCOL  *This,
  IN CHAR16                           *String
  )
{
  return EFI_SUCCESS;
}

STATIC
EFI_STATUS
EFIAPI
DiscardNumber (
  IN EFI_SIMPLE_TEXT_OUTPUT_PROTOCOL  *This,
  IN UINTN                            Number
  )
{
  return EFI_UNSUPPORTED;
}

STATIC
EFI_STATUS
EFIAPI
DiscardSwitch (
  IN EFI_SIMPLE_TEXT_OUTPUT_PROTOCOL  *This,
  IN BOOLEAN                          Switch
  )
{
  return EFI_SUCCESS;
}

STATIC
EFI_STATUS
EFIAPI
DiscardMode (
  IN  EFI_SIMPLE_TEXT_OUTPUT_PROTOCOL  *This,
  IN  UINTN                            Mode,
  OUT UINTN                            *Columns,
  OUT UINTN                            *Rows
  )
{
  return EFI_UNSUPPORTED;
}

STATIC
EFI_STATUS
EFIAPI
DiscardPlace (
  IN EFI_SIMPLE_TEXT_OUTPUT_PROTOCOL  *This,
  IN UINTN                            Column,
  IN UINTN                            Row
  )
{
  return EFI_UNSUPPORTED;
}

STATIC
EFI_STATUS
EFIAPI
Clear (
  IN EFI_SIMPLE_TEXT_OUTPUT_PROTOCOL  *This
  )
{
  return EFI_SUCCESS;
}

STATIC EFI_SIMPLE_TEXT_OUTPUT_PROTOCOL  mConsole = {
  DiscardSwitch,
  Discard,
  Discard,
  DiscardMode,
  DiscardNumber,
  DiscardNumber,
  Clear,
  DiscardPlace,
  DiscardSwitch,
  &mMode
};

/// The command line as a loaded image takes it: in UCS-2, with its zero.
STATIC CHAR16  mOptions[SIZE_2KB];

STATIC
VOID
EFIAPI
Start (
  IN EFI_BDS_ARCH_PROTOCOL  *This
  )
{
  EFI_HANDLE                 Handle;
  EFI_HANDLE                 Kernel;
  EFI_LOADED_IMAGE_PROTOCOL  *Image;
  UINT32                     Index;

  ReadParts (&mParts);
  InstallTables ();

  Handle = NULL;
  Require (
    !EFI_ERROR (
       gBS->InstallMultipleProtocolInterfaces (
              &Handle,
              &gEfiDevicePathProtocolGuid,
              &mInitrdPath,
              &gEfiLoadFile2ProtocolGuid,
              &mLoadInitrd,
              NULL
              )
       )
    );

  // The kernel's stub reads these without asking whether they are there.
  gST->ConOut         = &mConsole;
  gST->StdErr         = &mConsole;
  gST->FirmwareVendor = L"OpenRelay";
  Kernel              = NULL;
  Require (!EFI_ERROR (gBS->LoadImage (FALSE, gImageHandle, NULL, mParts.Kernel.Data, mParts.Kernel.Size, &Kernel)));
  Require (!EFI_ERROR (gBS->HandleProtocol (Kernel, &gEfiLoadedImageProtocolGuid, (VOID **)&Image)));
  for (Index = 0; Index < mParts.CommandLine.Size; Index++) {
    mOptions[Index] = mParts.CommandLine.Data[Index];
  }

  Image->LoadOptions     = mOptions;
  Image->LoadOptionsSize = mParts.CommandLine.Size * (UINT32)sizeof (CHAR16);
  gBS->StartImage (Kernel, NULL, NULL);
  Halt ();
}

STATIC EFI_BDS_ARCH_PROTOCOL  mBds = { Start };

EFI_STATUS
EFIAPI
BootEntryPoint (
  IN EFI_HANDLE        ImageHandle,
  IN EFI_SYSTEM_TABLE  *SystemTable
  )
{
  EFI_HANDLE  Handle;

  Handle = NULL;
  Require (
    !EFI_ERROR (gBS->InstallMultipleProtocolInterfaces (&Handle, &gEfiBdsArchProtocolGuid, &mBds, NULL))
    );
  return EFI_SUCCESS;
}
